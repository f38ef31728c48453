"""Names that no line of the product reads, because something else does: read by vulture in `make check`.

A name belongs here only with its reader. What only tests read is removed instead.
"""

# click calls it
_.convert  # ParamType
_.get_command  # Group
_.format_commands
_.format_options

# python-consul2 reads them: its endpoint classes ask their client and its transport
_.delete  # abstract method of HTTPClient
_.dc
_.consistency

# users name it by its value: --consul-service=self
_.SELF

# the wire names them by value: Why of a claim
_.UNREACHABLE
_.WRONG

# hypercorn reads them: its connection, its protocol and its configuration
_.idle_task
_._task_group
_._check_protocol
_.loglevel
_.keep_alive_max_requests
_.include_server_header

# dnspython and logging read them
_.nameservers
_.exc_info

# the import system calls them: the finder and the loaders of lean_imports
_.find_spec
_.create_module
_.exec_module
_.loader

# libp2p reads them: yamux' window and events, the interface of its connections
_.MAX_WINDOW_SIZE
_.stream_events
_._write_frame
_._read_data_body
_.get_remote_address

# the ssl module reads it
_.num_tickets

# http.server reads them
_.do_GET
_.log_message
format
_.daemon_threads

# templates read them
_.sectors
_.ms

# FastPath is called as a function
_.__call__

# `with` passes it to __exit__
traceback

# prometheus_client calls it: the interface of collectors
_.collect

# the templates of the pages read them, and Jinja its own
_.zones
_.unlisted
_.x1
_.y1
_.x2
_.y2
_.globals
# dataclasses.asdict reads them: the summary of a node in /api/cluster
_.uptime
_.image_bytes
_.transfer_count
