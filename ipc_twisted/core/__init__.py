"""The protocol without I/O: no Twisted, no sockets, and clock and randomness are handed in."""
