"""HTTP to other processes: over TCP, TLS and unix sockets."""
