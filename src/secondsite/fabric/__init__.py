"""What starts, stops and defines virtual machines: the port, the libvirt adapter and the fake that tests share."""
