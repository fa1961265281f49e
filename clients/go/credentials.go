package polyhead

import "context"

// APIKey sends a key with every call, if passed to grpc.WithPerRPCCredentials. gRPC refuses to send it without TLS.
type APIKey string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (key APIKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(key)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (key APIKey) RequireTransportSecurity() bool { return true }

// PlaintextAPIKey is an APIKey that is also sent without TLS. Use it for a server on the same machine.
type PlaintextAPIKey struct{ APIKey }

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (PlaintextAPIKey) RequireTransportSecurity() bool { return false }
