"""
Makes ``twistd ipc`` known to Twisted.

Read at every start of ``twistd``, whatever it runs, so it names :mod:`ipc_twisted.tap` and does not import it.
"""

from twisted.application.service import ServiceMaker

ipc = ServiceMaker(
    "ipc_twisted", "ipc_twisted.tap", "A secure local inter-process transport over TCP on 127.0.0.1.", "ipc"
)
