"""Collects a sample of the texts that the server answers, for people to label; off unless ``--collect`` names a folder.

::

    inference/intake -> TextSampler -> bounded queue -> Selection -> Redactor -> RowFiles
    (event loop)                    |  (one thread)                  (process)
                                    +-> full: the text is dropped and counted

Each row states the probability with which its text was chosen. A random part makes estimates from the rows unbiased.
"""
