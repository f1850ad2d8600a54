"""The SuperLink's rules in plain async Python: runs, nodes, mail, objects, logs, executors. No gRPC, no HTTP."""
