"""`reranker check`: what is wrong with groups, told and, on request, mended in a copy."""
