package polyhead

import (
	"context"
	"errors"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/polyhead/polyhead/clients/go/polyheadv1"
)

// Stream answers items over a bidirectional stream until the channel is closed, and calls handle once for each item.
//
// Answers arrive in the order of their completion and carry the ids of their items; ids need not be unique. handle is
// called by the calling goroutine; while it runs, no answers are read, and the stream slows down.
//
// An item that the server rejects because it is overloaded is sent again after the delay that the server requests. If
// the stream breaks, a new one is opened and exactly the unanswered items are sent again. The deadline of ctx applies to
// the whole stream. Stream returns nil when every item is answered, the error of handle, or a gRPC status; then the
// channel may contain items that were not read.
func (c *Client) Stream(
	ctx context.Context,
	items <-chan *polyheadv1.Item,
	options Options,
	handle func(*polyheadv1.Answer) error,
) error {
	s := &stream{
		Client:  c,
		options: options,
		handle:  handle,
		items:   items,
		pending: make(map[string]*entry),
		due:     make(chan string, c.maxInFlight),
	}
	failures := 0 // consecutive, without an answer in between
	for {
		answered := s.answered
		err := s.run(ctx)
		if err == nil {
			return nil
		}
		var stopped *handlerError
		if errors.As(err, &stopped) {
			return stopped.err
		}
		if s.answered > answered {
			failures = 0
		}
		failures++
		if !c.waitToRetry(ctx, status.Convert(err).Proto(), max(failures, s.countFailure())) {
			return err
		}
	}
}

// entry is an item without a final answer.
type entry struct {
	item     *polyheadv1.Item
	failures int
	delayed  bool // until the delay before its next attempt has passed
}

type stream struct {
	*Client
	options  Options
	handle   func(*polyheadv1.Answer) error
	items    <-chan *polyheadv1.Item // nil once it is closed
	pending  map[string]*entry       // by the id on the wire, a sequence number
	due      chan string             // ids whose delay has passed; holds each at most once, so that no timer blocks
	sequence uint64
	answered int
}

type handlerError struct{ err error }

func (e *handlerError) Error() string { return e.err.Error() }

// countFailure counts a broken stream against every item that was on its way, as any of them may be the cause. It
// returns the largest count.
func (s *stream) countFailure() int {
	most := 0
	for _, entry := range s.pending {
		if !entry.delayed {
			entry.failures++
			most = max(most, entry.failures)
		}
	}
	return most
}

// run opens one stream and returns when it is over: nil if every item is answered.
func (s *stream) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	call, err := s.stub.StreamAnalyze(ctx, grpc.MaxCallRecvMsgSize(maxReceiveBytes))
	if err != nil {
		return err
	}
	queue := make(chan *polyheadv1.Item, s.maxInFlight) // holds each pending item at most once, so that no write blocks
	for id, entry := range s.pending {
		if !entry.delayed {
			queue <- wireItem(id, entry)
		}
	}
	go s.send(ctx, call, queue)
	responses, ended := make(chan *polyheadv1.StreamAnalyzeResponse), make(chan error, 1)
	go receive(ctx, call, responses, ended)
	closed := false
	for {
		done := s.items == nil && len(s.pending) == 0
		if done && !closed {
			close(queue)
			closed = true
		}
		items := s.items
		if len(s.pending) >= s.maxInFlight {
			items = nil
		}
		select {
		case item, ok := <-items:
			if !ok {
				s.items = nil
			} else if err := s.add(item, queue); err != nil {
				return err
			}
		case id := <-s.due:
			s.pending[id].delayed = false
			queue <- wireItem(id, s.pending[id])
		case response := <-responses:
			for _, answer := range response.Answers {
				if err := s.onAnswer(ctx, answer); err != nil {
					return err
				}
			}
		case err := <-ended:
			if done {
				return nil
			}
			if err == io.EOF { // a server that drains may end the stream early
				return status.Errorf(codes.Unavailable, "the stream ended before all items were answered")
			}
			return err
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// add sends a new item, or answers it if it cannot be sent.
func (s *stream) add(item *polyheadv1.Item, queue chan<- *polyheadv1.Item) error {
	if answer := rejectInvalid(item); answer != nil {
		return s.deliver(answer)
	}
	s.sequence++
	id := strconv.FormatUint(s.sequence, 10)
	s.pending[id] = &entry{item: item}
	queue <- wireItem(id, s.pending[id])
	return nil
}

func (s *stream) onAnswer(ctx context.Context, answer *polyheadv1.Answer) error {
	id := answer.GetItemId()
	entry, ok := s.pending[id]
	if !ok { // a message that was rejected as a whole
		return unexpectedAnswers([]*polyheadv1.Answer{answer}, len(s.pending))
	}
	if failure := answer.GetError(); retryable(failure) {
		entry.failures++
		if delay, ok := s.retryDelay(ctx, failure, entry.failures); ok {
			entry.delayed = true
			time.AfterFunc(delay, func() { s.due <- id })
			return nil
		}
	}
	delete(s.pending, id)
	answer.ItemId = entry.item.GetItemId()
	return s.deliver(answer)
}

func (s *stream) deliver(answer *polyheadv1.Answer) error {
	s.answered++
	if err := s.handle(answer); err != nil {
		return &handlerError{err}
	}
	return nil
}

// send writes the items of the queue, as many in one message as are waiting, until the queue is closed or ctx is done.
func (s *stream) send(ctx context.Context, call polyheadv1.InferenceService_StreamAnalyzeClient, queue <-chan *polyheadv1.Item) {
	for {
		var batch []*polyheadv1.Item
		select {
		case item, ok := <-queue:
			if !ok {
				_ = call.CloseSend()
				return
			}
			batch = append(batch, item)
		case <-ctx.Done():
			return
		}
		for bytes := len(batch[0].GetText()); len(batch) < maxMessageItems && bytes < maxMessageBytes && len(queue) > 0; {
			item := <-queue
			bytes += len(item.GetText())
			batch = append(batch, item)
		}
		err := call.Send(&polyheadv1.StreamAnalyzeRequest{
			Items:            batch,
			Tasks:            s.options.Tasks,
			Options:          s.options.Item,
			EmbeddingOptions: s.options.Embedding,
			Order:            polyheadv1.AnswerOrder_ANSWER_ORDER_COMPLETION,
		})
		if err != nil {
			return // receive gets the status
		}
	}
}

func receive(
	ctx context.Context,
	call polyheadv1.InferenceService_StreamAnalyzeClient,
	responses chan<- *polyheadv1.StreamAnalyzeResponse,
	ended chan<- error,
) {
	for {
		response, err := call.Recv()
		if err != nil {
			ended <- err
			return
		}
		select {
		case responses <- response:
		case <-ctx.Done():
			return
		}
	}
}

func wireItem(id string, entry *entry) *polyheadv1.Item {
	return &polyheadv1.Item{ItemId: id, Text: entry.item.GetText()}
}

func max(a, b int) int {
	if a > b {
		return a
	}
	return b
}
