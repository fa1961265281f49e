// Command polyhead-analyze prints the embedding of texts and the answers of all heads as JSON lines.
//
// It reads the texts from its arguments, or one per line from standard input. The API key, if the server requires one,
// is read from POLYHEAD_API_KEY and sent only over TLS or to this machine.
//
// Exit status: 0 success, 1 an item has an error or the call failed, 2 wrong command line.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	polyhead "github.com/polyhead/polyhead/clients/go"
	"github.com/polyhead/polyhead/clients/go/polyheadv1"
)

const maxLineBytes = 16 << 20

type record struct {
	ID             string          `json:"id"`
	Embedding      []float32       `json:"embedding,omitempty"`
	Classification *classification `json:"classification,omitempty"`
	Sentiment      *sentiment      `json:"sentiment,omitempty"`
	LabelSets      []labelSet      `json:"label_sets,omitempty"`
	Scores         []headScore     `json:"scores,omitempty"`
	Novelty        *float32        `json:"novelty,omitempty"`
	Truncated      *bool           `json:"truncated,omitempty"`
	Error          *failure        `json:"error,omitempty"`
}

// confidence is what a head that abstains adds to its answer.
type confidence struct {
	Confidence *float32 `json:"confidence,omitempty"`
	Abstained  *bool    `json:"abstained,omitempty"`
}

type classification struct {
	Head   string       `json:"head"`
	Scores []labelScore `json:"scores"`
	confidence
	PredictionSet []string `json:"prediction_set,omitempty"`
}

type labelScore struct {
	Label       string  `json:"label"`
	Probability float32 `json:"probability"`
}

type sentiment struct {
	Head        string  `json:"head"`
	Probability float32 `json:"probability"`
	Label       string  `json:"label"`
	confidence
}

type labelSet struct {
	Head   string       `json:"head"`
	Scores []labelScore `json:"scores"`
	Labels []string     `json:"labels"`
}

type headScore struct {
	Head          string       `json:"head"`
	Value         float32      `json:"value"`
	Label         *string      `json:"label"`
	Probabilities []labelScore `json:"probabilities"`
	confidence
}

type failure struct {
	Code    string `json:"code"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message"`
}

var errItems = errors.New("some items have errors")

func main() {
	target := flag.String("target", "127.0.0.1:50051", "address of the server, `HOST:PORT`")
	useTLS := flag.Bool("tls", false, "connect with TLS, verified by the system's certificates")
	ca := flag.String("ca", "", "connect with TLS, verified by the certificates in this PEM `file`")
	timeout := flag.Duration("timeout", 0, "deadline of the whole call; 0 for none")
	unary := flag.Bool("unary", false, "send one unary call instead of a stream")
	model := flag.String("model", "", "`name` of the model that answers, for a server with several; default: the first")
	novelty := flag.Bool("novelty", false, "add how new each text is to the model, 0 to 1")
	sets := flag.Bool("prediction-sets", false, "add the prediction set of each head that has them")
	attempts := flag.Int("max-attempts", 5, "consecutive attempts of a call or an item; 1 disables retries")
	flag.Parse()
	if *attempts < 1 || *timeout < 0 {
		fmt.Fprintln(os.Stderr, "polyhead-analyze: -max-attempts must be at least 1, and -timeout at least 0")
		os.Exit(2)
	}
	ctx := context.Background()
	if *model != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-polyhead-model", *model)
	}
	if *timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *timeout)
		defer cancel()
	}
	options := polyhead.Options{
		Item: &polyheadv1.ItemOptions{IncludeNovelty: *novelty, IncludePredictionSets: *sets},
	}
	err := run(ctx, *target, *ca, *useTLS, *unary, *attempts, options)
	if errors.Is(err, errItems) {
		os.Exit(1)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "polyhead-analyze:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, target, ca string, useTLS, unary bool, attempts int, options polyhead.Options) error {
	dial, err := dialOptions(target, ca, useTLS)
	if err != nil {
		return err
	}
	connection, err := grpc.Dial(target, dial...)
	if err != nil {
		return err
	}
	defer connection.Close()
	client, err := polyhead.New(connection, polyhead.MaxAttempts(attempts))
	if err != nil {
		return err
	}
	encoder, failed := json.NewEncoder(os.Stdout), false // without a buffer: each answer is printed at once
	write := func(answer *polyheadv1.Answer) error {
		failed = failed || answer.GetError() != nil
		record, err := newRecord(answer)
		if err != nil {
			return err
		}
		return encoder.Encode(record)
	}
	if unary {
		err = analyze(ctx, client, options, write)
	} else {
		err = stream(ctx, client, options, write)
	}
	if err == nil && failed {
		err = errItems
	}
	return err
}

func dialOptions(target, ca string, useTLS bool) ([]grpc.DialOption, error) {
	transport, secure := grpc.WithInsecure(), false
	switch {
	case ca != "":
		certificates, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			return nil, err
		}
		transport, secure = grpc.WithTransportCredentials(certificates), true
	case useTLS:
		transport, secure = grpc.WithTransportCredentials(credentials.NewTLS(nil)), true
	}
	options := []grpc.DialOption{transport}
	if key := os.Getenv("POLYHEAD_API_KEY"); key != "" {
		credential := polyhead.APIKey(key)
		if secure {
			options = append(options, grpc.WithPerRPCCredentials(credential))
		} else if isLoopback(target) {
			options = append(options, grpc.WithPerRPCCredentials(polyhead.PlaintextAPIKey{APIKey: credential}))
		} else {
			return nil, fmt.Errorf("POLYHEAD_API_KEY: %s is not a loopback address; add -tls", target)
		}
	}
	return options, nil
}

func isLoopback(target string) bool {
	host, _, err := net.SplitHostPort(target)
	return err == nil && (host == "localhost" || net.ParseIP(host).IsLoopback())
}

// analyze answers all texts with one unary call.
func analyze(
	ctx context.Context, client *polyhead.Client, options polyhead.Options, write func(*polyheadv1.Answer) error,
) error {
	var items []*polyheadv1.Item
	err := readItems(ctx, func(item *polyheadv1.Item) bool {
		items = append(items, item)
		return true
	})
	if err != nil {
		return err
	}
	answers, err := client.Analyze(ctx, items, options)
	if err != nil {
		return err
	}
	for _, answer := range answers {
		if err := write(answer); err != nil {
			return err
		}
	}
	return nil
}

// stream answers texts while it reads them.
func stream(
	ctx context.Context, client *polyhead.Client, options polyhead.Options, write func(*polyheadv1.Answer) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	items, read := make(chan *polyheadv1.Item), make(chan error, 1)
	go func() {
		defer close(items)
		read <- readItems(ctx, func(item *polyheadv1.Item) bool {
			select {
			case items <- item:
				return true
			case <-ctx.Done():
				return false
			}
		})
	}()
	if err := client.Stream(ctx, items, options, write); err != nil {
		return err
	}
	return <-read
}

// readItems passes on every text, with its number as id, until add returns false.
func readItems(ctx context.Context, add func(*polyheadv1.Item) bool) error {
	number := 0
	next := func(text string) bool {
		item := &polyheadv1.Item{ItemId: strconv.Itoa(number), Text: text}
		number++
		return add(item)
	}
	if flag.NArg() > 0 {
		for _, text := range flag.Args() {
			if !next(text) {
				return ctx.Err()
			}
		}
		return nil
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLineBytes)
	for lines.Scan() {
		if !next(lines.Text()) {
			return ctx.Err()
		}
	}
	return lines.Err()
}

func newRecord(answer *polyheadv1.Answer) (*record, error) {
	record := &record{ID: answer.GetItemId()}
	if answer.GetError() != nil {
		record.Error = newFailure(answer.GetError())
		return record, nil
	}
	result := answer.GetResult()
	if embedding := result.GetEmbedding(); embedding != nil {
		values, err := polyhead.Float32s(embedding)
		if err != nil {
			return nil, err
		}
		record.Embedding = values
	}
	if head := result.GetClassification(); head != nil {
		record.Classification = &classification{
			head.GetHead(), labelScores(head.GetScores()), confidence{head.Confidence, head.Abstained}, head.GetPredictionSet(),
		}
	}
	if head := result.GetSentiment(); head != nil {
		record.Sentiment = &sentiment{
			head.GetHead(), head.GetProbability(), head.GetLabel(), confidence{head.Confidence, head.Abstained},
		}
	}
	for _, head := range result.GetLabelSets() {
		labels := append([]string{}, head.GetLabels()...)
		record.LabelSets = append(record.LabelSets, labelSet{head.GetHead(), labelScores(head.GetScores()), labels})
	}
	for _, head := range result.GetScores() {
		score := headScore{
			Head: head.GetHead(), Value: head.GetValue(), Probabilities: labelScores(head.GetProbabilities()),
			confidence: confidence{head.Confidence, head.Abstained},
		}
		if label := head.GetLabel(); label != "" {
			score.Label = &label
		}
		record.Scores = append(record.Scores, score)
	}
	record.Novelty = result.Novelty
	truncated := result.GetTruncation().GetTruncated()
	record.Truncated = &truncated
	return record, nil
}

func labelScores(encoded []*polyheadv1.LabelScore) []labelScore {
	scores := make([]labelScore, 0, len(encoded))
	for _, one := range encoded {
		scores = append(scores, labelScore{one.GetLabel(), one.GetProbability()})
	}
	return scores
}

func newFailure(failed *rpcstatus.Status) *failure {
	record := &failure{Code: codes.Code(failed.GetCode()).String(), Message: failed.GetMessage()}
	for _, detail := range status.FromProto(failed).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			record.Reason = info.GetReason()
		}
	}
	return record
}
