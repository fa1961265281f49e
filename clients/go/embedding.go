package polyhead

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/polyhead/polyhead/clients/go/polyheadv1"
)

// Float32s returns the values of an embedding in the encoding FLOAT32_LE, the default, or INT8.
func Float32s(embedding *polyheadv1.Embedding) ([]float32, error) {
	data := embedding.GetValues()
	values := make([]float32, embedding.GetDimensions())
	switch encoding := embedding.GetEncoding(); {
	case encoding == polyheadv1.EmbeddingEncoding_EMBEDDING_ENCODING_FLOAT32_LE && len(data) == 4*len(values):
		for i := range values {
			values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
	case encoding == polyheadv1.EmbeddingEncoding_EMBEDDING_ENCODING_INT8 && len(data) == len(values):
		for i := range values {
			values[i] = float32(int8(data[i])) * embedding.GetScale()
		}
	default:
		return nil, fmt.Errorf("embedding: %d bytes of %d dimensions in %v are not supported", len(data), len(values), encoding)
	}
	return values, nil
}
