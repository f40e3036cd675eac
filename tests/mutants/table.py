"""All mutants."""

from tests.mutants import of_delivery, of_handshake, of_host, of_process, of_records

MUTANTS = [
    *of_handshake.MUTANTS,
    *of_records.MUTANTS,
    *of_delivery.MUTANTS,
    *of_process.MUTANTS,
    *of_host.MUTANTS,
]
