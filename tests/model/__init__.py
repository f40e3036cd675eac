"""A bounded symbolic model of the handshake and of the records behind it: every attack within the bound, or none.

Cryptography is perfect: HMAC, HKDF and SHA-256 are constructors of terms (:mod:`tests.model.terms`). The attacker owns
the network and any local port, knows all that is public, sees all that honest ends say, takes it apart, puts anything
together and delivers it to whom it likes, when and as often as it likes (:mod:`tests.model.attacker`). It lacks the
secret, and nothing else.

**The bound** (:class:`tests.model.setting.Setting`): so many client sessions and server sessions, ports, services and
records per end; in the suite 3, 2, 2, 2 and 2, which is 195,044 states. Every session takes one M1 and one M3, or one
M2, so the bound on sessions is one on the attacker's deliveries that matter: with 3 clients and 2 servers 7, and then
the records. What it computes is not bounded. Within that, every interleaving is covered:

* clients dial any port for any service, from addresses that they share (one after the other) or do not;
* server sessions belong to one process, to another on another port, or to another on the same port: a restart, with
  a new instance, before, between or after all else; whatever port a client dials, the attacker may be who holds it;
* the attacker's connections come from its own address or from that of any client. The second is more than the kernel
  allows while the client lives: what holds here holds without relying on it;
* a field takes all that was ever said of its size, whatever it was made for: a tag as a nonce, a key id as an instance.

**The promises** are in :mod:`tests.model.promises`; that the two ends agree says who is at the other socket only
together with what the kernel promises: that one pair of addresses joins two sockets and not three.

**What makes it small, and loses nothing.** What ends refuse is left out, for they answer nothing to it. All clients
have dialled when the search begins, and a server session takes the one M3 that is right for it as soon as the attacker
can make it: what the attacker knows never becomes less, so it gains nothing from a later time. One own nonce, address,
instance and limits are enough for the attacker, as honest ends never look whether two of them differ; and what it
computes itself is to them one of these. Honest ends all have the same limits, for the attacker has others. The order
of events is no part of a state. States that differ in names only are one (:mod:`tests.model.symmetry`).

**What is not in it**: lengths, heads and early bytes (refused before any cryptography), deadlines, more than one
secret, a server that forgets a key in the middle, receipts and CLOSE (records like others), freshness and nonces of
envelopes, and everything that perfect cryptography leaves out. Server's and client's address have places of their own
in the transcript, so they are two kinds of names, and that an end could dial itself is not expressed.

``python -m tests.model --help`` searches further than the suite does. :mod:`tests.test_handshake_model` runs it, and
compares its terms with the bytes of the package.
"""
