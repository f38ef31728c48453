# Runs a program each time the leader changes. Goes to /etc/consul.d/, with the program beside it.

watches = [
  {
    type         = "key"
    key          = "spegel/leader"
    handler_type = "script"
    args         = ["/etc/consul.d/leader-changed"]
  }
]
