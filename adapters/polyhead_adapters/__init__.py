"""Adapters of the client to the interfaces of other frameworks, one module for each, with an extra of the same name.

=============  =====================  ========================================================
module         extra                  contains
=============  =====================  ========================================================
encoder        ``client``             ``encode()`` as in sentence-transformers
langchain      ``langchain``          embeddings, and a runnable for the answers of heads
llama_index    ``llama-index``        embeddings
haystack       ``haystack``           embedders of texts and documents, and routers
=============  =====================  ========================================================

::

    langchain, llama_index --> _fields --+--> _connection --> polyhead_client
    haystack, encoder -------------------'
"""
