// Package polyhead calls a polyhead server, which answers a text with an embedding and the answers of all heads from
// one forward pass.
//
// The package polyheadv1 holds the generated messages and stubs. Client adds retries, deadlines and a stream that
// loses no item.
package polyhead

import (
	"context"
	"fmt"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/polyhead/polyhead/clients/go/polyheadv1"
)

const (
	defaultMaxAttempts = 5
	defaultMaxInFlight = 256
	// A message of several items is much cheaper than a message for each item.
	maxMessageItems = 64
	maxMessageBytes = 1 << 20
	maxReceiveBytes = 64 << 20
)

// Client calls one server, or several behind one name. It is safe for concurrent use.
type Client struct {
	stub        polyheadv1.InferenceServiceClient
	maxAttempts int
	maxInFlight int
}

// An Option changes a default of a Client.
type Option func(*Client)

// MaxAttempts limits consecutive failed attempts of a call or an item, including the first; the default is 5, and 1
// disables retries.
func MaxAttempts(attempts int) Option {
	return func(client *Client) { client.maxAttempts = attempts }
}

// MaxInFlight limits the items of a stream that were sent and not yet answered; the default is 256.
func MaxInFlight(items int) Option {
	return func(client *Client) { client.maxInFlight = items }
}

// New returns a client that uses an open connection, or an error if a limit is less than 1. The caller closes the
// connection.
func New(connection grpc.ClientConnInterface, options ...Option) (*Client, error) {
	client := &Client{
		stub:        polyheadv1.NewInferenceServiceClient(connection),
		maxAttempts: defaultMaxAttempts,
		maxInFlight: defaultMaxInFlight,
	}
	for _, option := range options {
		option(client)
	}
	if client.maxAttempts < 1 {
		return nil, fmt.Errorf("MaxAttempts: %d is less than 1", client.maxAttempts)
	}
	if client.maxInFlight < 1 {
		return nil, fmt.Errorf("MaxInFlight: %d is less than 1", client.maxInFlight)
	}
	return client, nil
}

// Options are the tasks and options of a request. The zero value requests every task with the server's defaults.
type Options struct {
	Tasks     []polyheadv1.Task
	Item      *polyheadv1.ItemOptions
	Embedding *polyheadv1.EmbeddingOptions
}

// ModelInfo describes the model that the server serves, and its limits.
func (c *Client) ModelInfo(ctx context.Context) (*polyheadv1.ModelInfo, error) {
	for attempt := 1; ; attempt++ {
		response, err := c.stub.GetModelInfo(ctx, &polyheadv1.GetModelInfoRequest{})
		if err == nil {
			return response.GetModel(), nil
		}
		if !c.waitToRetry(ctx, status.Convert(err).Proto(), attempt) {
			return nil, err
		}
	}
}

// Analyze answers one batch of items, in their order. There may be at most Limits.max_items_per_message of them; use
// Stream for more.
//
// An answer holds either a result or an error. Items that the server rejects because it is overloaded are sent again
// after the delay that it requests, as long as attempts and the deadline of ctx permit. The returned error is a gRPC
// status that concerns all items.
func (c *Client) Analyze(ctx context.Context, items []*polyheadv1.Item, options Options) ([]*polyheadv1.Answer, error) {
	answers := make([]*polyheadv1.Answer, len(items))
	var pending []int // indexes of the items that have no final answer
	for index, item := range items {
		if answers[index] = rejectInvalid(item); answers[index] == nil {
			pending = append(pending, index)
		}
	}
	received := false
	for attempt := 1; len(pending) > 0; attempt++ {
		batch := make([]*polyheadv1.Item, len(pending))
		for position, index := range pending {
			batch[position] = items[index]
		}
		response, err := c.stub.Analyze(ctx, &polyheadv1.AnalyzeRequest{
			Items:            batch,
			Tasks:            options.Tasks,
			Options:          options.Item,
			EmbeddingOptions: options.Embedding,
		}, grpc.MaxCallRecvMsgSize(maxReceiveBytes))
		if err != nil {
			if c.waitToRetry(ctx, status.Convert(err).Proto(), attempt) {
				continue
			}
			if received {
				break // the rejections and the other answers are worth more than this error
			}
			return nil, err
		}
		if len(response.Answers) != len(pending) {
			return nil, unexpectedAnswers(response.Answers, len(pending))
		}
		received = true
		var rejected []int
		var rejection *rpcstatus.Status // the one with the longest delay
		for position, answer := range response.Answers {
			index := pending[position]
			answers[index] = answer
			if retryable(answer.GetError()) {
				rejected = append(rejected, index)
				if rejection == nil || requestedDelay(answer.GetError()) > requestedDelay(rejection) {
					rejection = answer.GetError()
				}
			}
		}
		pending = rejected
		if len(pending) > 0 && !c.waitToRetry(ctx, rejection, attempt) {
			break
		}
	}
	return answers, nil
}

// rejectInvalid returns the answer of an item that cannot be sent, and nil for every other item.
func rejectInvalid(item *polyheadv1.Item) *polyheadv1.Answer {
	if utf8.ValidString(item.GetText()) && utf8.ValidString(item.GetItemId()) {
		return nil
	}
	detail := &errdetails.ErrorInfo{Reason: "TEXT_NOT_UTF8", Domain: "polyhead"}
	rejection := status.New(codes.InvalidArgument, "the text or the id of the item is not valid UTF-8")
	if detailed, err := rejection.WithDetails(detail); err == nil {
		rejection = detailed
	}
	return &polyheadv1.Answer{
		ItemId:  item.GetItemId(),
		Outcome: &polyheadv1.Answer_Error{Error: rejection.Proto()},
	}
}

// unexpectedAnswers returns the error of a message that was rejected as a whole.
func unexpectedAnswers(answers []*polyheadv1.Answer, items int) error {
	if len(answers) == 1 && answers[0].GetError() != nil {
		return status.ErrorProto(answers[0].GetError())
	}
	return status.Error(codes.Internal, fmt.Sprintf("%d answers to %d items", len(answers), items))
}
