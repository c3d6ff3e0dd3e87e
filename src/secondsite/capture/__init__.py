"""What changed on a machine's disks since a point, and those bytes as of the next point, for all disks at once.

`port` is the contract; `libvirt` and `offline` read a machine that runs or is shut off, `select` chooses between
them, `fake` is the one that tests share. `parts` turns a snapshot into files to ship, `pending` remembers what they
change until they are acknowledged.
"""
