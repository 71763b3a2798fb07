"""Interrupt the plugin at every system call, and check the result.

injection.py   the possible faults, from a trace of an undisturbed call; strace(1) injects them
flow.py        a connection that must not be affected
audit.py       the checks afterwards
scenes.py      the calls: ADD, DEL, GC and reconcile, in situations with different code paths
campaign.py    all injections of a scene, and the runtime's next calls
"""
