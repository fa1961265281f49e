"""Front processes and the engine process: token ids go in and numbers come out through shared memory.

::

    front process                                        engine process
    RemotePipeline -> EngineClient -> Channel  ~rings~  Channel -> FrontConnection -> EngineCore
    (tokenization)                                                  (EngineHost)      (queue, model)

A front keeps what the engine has not answered, and sends it to the next engine process if this one ends.
"""
