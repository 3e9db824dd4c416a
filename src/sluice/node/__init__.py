"""A node's side: container runtimes, load balancer and static pods, made from one layout document."""
