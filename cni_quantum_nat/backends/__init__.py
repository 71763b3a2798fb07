"""Backend Providers: how an attachment becomes rules in the kernel. `base` is the contract.

`nftables` and `iptables` are the two providers; files with the same name do the same thing in both. The NAT Manager calls
them under the lock; they import `ports`, `connections` and the floors below.

A pod's start waits for this module.
"""
