"""What every transport shares: the serving model, its lifecycle, and the meaning of each protocol's requests.

No module here knows gRPC, HTTP or the messages of a wire format.
"""
