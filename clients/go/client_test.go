package polyhead

import (
	"strings"
	"testing"
)

func TestNewRejectsLimitsBelowOne(t *testing.T) {
	for name, option := range map[string]Option{"MaxAttempts": MaxAttempts(0), "MaxInFlight": MaxInFlight(0)} {
		if client, err := New(nil, option); client != nil || err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, client, err)
		}
	}
	if client, err := New(nil, MaxAttempts(1), MaxInFlight(1)); client == nil || err != nil {
		t.Errorf("%v, %v", client, err)
	}
}
