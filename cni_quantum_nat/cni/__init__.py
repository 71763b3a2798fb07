"""The CNI protocol: a call's environment and standard input, and one JSON object on standard output.

`entry` runs a runtime's call. `configuration` is the model of the network configuration, loaded only for one that is new;
`api` and `commands` use it too.

A pod's start waits for this module.
"""
