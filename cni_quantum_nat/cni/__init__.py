"""What a runtime says and hears: environment and standard input, one JSON object on standard output.

`entry` runs a call; `configuration` is the model of the network configuration, loaded for one that was not seen before.
`api` and `commands` use the configuration; a runtime's call enters by `entry`.
"""
