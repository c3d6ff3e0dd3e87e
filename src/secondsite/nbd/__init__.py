"""NBD: serving points as disks, and reaching disk images through qemu-nbd.

`disk` says what can be served, `negotiation` and `transmission` speak the protocol, `server` owns the socket and
its threads, `view` is the process that serves one point. `image` starts qemu-nbd, `image_base` reads and writes
through it, `shared` lets several processes share one qemu-nbd per image.
"""
