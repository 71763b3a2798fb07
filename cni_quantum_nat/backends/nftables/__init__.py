"""Backend Provider for nftables: an attachment is elements of the sets and maps of table `inet quantum`.

`rules` says which elements, `layout` and `text` what the table is, `table` moves elements in and out over netlink, and
`programs` runs libnftables where the table itself has to be made. The NAT Manager enters by `provider`.

A pod's start waits for this module.
"""
