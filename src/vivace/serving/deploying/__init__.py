"""Files that run a server elsewhere: in a container, in Kubernetes, under systemd."""
