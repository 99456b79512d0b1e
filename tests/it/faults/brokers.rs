//! Faults of the queues: brokers that restart, connections that break, messages that come twice.
