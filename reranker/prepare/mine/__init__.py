"""`reranker mine`: hard negatives out of a corpus, those that may be right filtered out.

    groups + corpus -> store      every distinct text once, on the disk          store.py, records.py
                    -> retrieve   the best passages of each query                lexical.py, dense.py
                    -> pool       window, draws, cheap filters; a pure function  pool.py, filters.py, near.py
                    -> rescore    a reranker's opinion of what is left           rescore.py
                    -> finish     negatives of each group, teacher scores        finish.py, report.py, command.py

Each stage but the pool keeps its results under cache/, keyed by a digest of what they depend on (cache.py).
"""
