"""What the whole way in costs a request: one worker, keep-alive connections, two limits in Valkey."""
