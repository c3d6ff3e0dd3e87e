"""The lab's guest: built in seconds from the distribution's kernel and busybox, it writes what any copy can be judged by."""
