"""Interrupts the plugin at every system call, and looks at what is left.

injection.py   what can be injected: read from a trace of an undisturbed call, done by strace(1)
flow.py        a connection that must not notice
audit.py       what must be true afterwards
scenes.py      the calls: ADD, DEL, GC and reconcile, in the situations that take different ways
campaign.py    every injection of a scene, and what a runtime does next
"""
