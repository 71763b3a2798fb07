"""Backend Provider for iptables: an attachment is rules in chains QUANTUM-..., changed by iptables-restore.

`rules` says which rules, `text` what iptables-restore and iptables-save read and write, `programs` starts them. The NAT
Manager enters by `provider`.
"""
