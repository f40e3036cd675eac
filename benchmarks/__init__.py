"""``python -m benchmarks``: this transport against what people would use instead, in real processes on loopback.

=================  ===================================================================
``work``           what a receiver does with a message, the same for every system
``systems/``       each system: its receiver, and its sender for each kind of work
``child``          the process that one side of one measurement runs in
``measure``        starts both sides of a measurement and collects what they print
``own``            what only this package is asked: cost per byte and message, memory
``limits``         the HMAC and the loopback copy alone: what nobody can beat
``targets``        the ratios that must hold, and those that are wanted
``report``         medians, ratios, verdicts, as text
``chart``          the same as a picture
``run``            all measurements, in turn
``__main__``       the command line
=================  ===================================================================
"""
