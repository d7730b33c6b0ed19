r"""Tasks of lm-evaluation-harness that read local JSON-lines files, asked in the words of the harness's own tasks of these names.

The folder is given by `memjax eval --data=DIR`, or to the harness's own command by the environment variable MEMJAX_EVAL_DATA. Of each task
it holds one file, `NAME*.jsonl` or `NAME*.jsonl.gz`, with a document a line:

| task | file | fields |
|---|---|---|
| arc_easy_local | arc_easy*.jsonl | query ("Question: ..."), choices, gold |
| boolq_local | boolq*.jsonl | query ("Passage: ...\nQuestion: ...?"), choices (no, yes), gold |
| hellaswag_local | hellaswag*.jsonl | query, choices, gold |
| lambada_local | lambada*.jsonl | context, continuation (the last word) |
| piqa_local | piqa*.jsonl | query ("Question: ...\n"), choices, gold |
| winogrande_local | winogrande*.jsonl | context_options, continuation, gold |
| text_local | text*.jsonl | text: perplexity a word and a byte, bits a byte |

`gold` is the number of the right choice, or of the context under which the continuation is the right one.
"""
