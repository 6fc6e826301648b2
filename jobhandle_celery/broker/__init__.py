"""Publishing to the broker: messages, routing, connections and transports."""
