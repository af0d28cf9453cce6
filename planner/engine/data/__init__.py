"""What is trained on: documents to text, text to tokens, tokens to batches; and labelled images.

documents.py      what a path holds: files, tables, saved data sets
deduplication.py  exact copies and near-duplicates
texts.py          the two splits of every source
tokenizer.py      text to tokens
corpus.py         the tokens of every source
images.py         labelled images
order.py          which sample comes when: a function of its global index
windows.py        batches of text
cache.py          what is kept between trials

Nothing here knows of models or workers: batches are functions of indices.
"""
