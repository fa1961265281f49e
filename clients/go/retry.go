package polyhead

import (
	"context"
	"math"
	"math/rand"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	initialDelay = 50 * time.Millisecond
	maxDelay     = time.Second
	// Longest delay as a share of the time left: an attempt right before the deadline only takes capacity from others.
	maxDelayShare = 0.5
	// Delays are extended by up to a third at random, so that clients do not return in lockstep.
	maxJitter = 1.0 / 3
)

// retryable reports whether a retry can succeed: nothing was computed, and the request itself is not at fault.
//
// A server that stops gracefully answers CANCELLED to calls that it has not started. RESOURCE_EXHAUSTED without a delay
// means that the message is too large, and it would be too large again.
func retryable(failure *rpcstatus.Status) bool {
	switch codes.Code(failure.GetCode()) {
	case codes.Unavailable, codes.Canceled:
		return true
	case codes.ResourceExhausted:
		return requestedDelay(failure) >= 0
	}
	return false
}

// requestedDelay returns the delay that the server requests before the next attempt, and -1 if it requests none.
func requestedDelay(failure *rpcstatus.Status) time.Duration {
	for _, detail := range status.FromProto(failure).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return -1
}

// retryDelay returns the delay before the next attempt. It reports false if the failure is final, or if no useful time
// is left.
func (c *Client) retryDelay(ctx context.Context, failure *rpcstatus.Status, failures int) (time.Duration, bool) {
	if ctx.Err() != nil || failures >= c.maxAttempts || !retryable(failure) {
		return 0, false
	}
	delay := requestedDelay(failure)
	if delay < 0 {
		delay = initialDelay * time.Duration(math.Pow(3, float64(failures-1)))
		if delay > maxDelay {
			delay = maxDelay
		}
	}
	delay += time.Duration(rand.Float64() * maxJitter * float64(delay))
	if deadline, ok := ctx.Deadline(); ok && float64(delay) >= maxDelayShare*float64(time.Until(deadline)) {
		return 0, false
	}
	return delay, true
}

// waitToRetry waits before the next attempt; it reports false if there is none.
func (c *Client) waitToRetry(ctx context.Context, failure *rpcstatus.Status, failures int) bool {
	delay, ok := c.retryDelay(ctx, failure, failures)
	if !ok {
		return false
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
