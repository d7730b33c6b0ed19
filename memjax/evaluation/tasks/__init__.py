r"""Tasks of lm-evaluation-harness that read local JSON-lines files.

Their prompts are those of the harness's own tasks of these names.

`memjax eval --task_folder=FOLDER` sets their folder, or the environment variable MEMJAX_EVAL_DATA
for the harness's own command. It holds one file per task, `NAME*.jsonl` (also .gz, .zst),
with one document per line:

| task | file | fields |
|---|---|---|
| arc_easy_local | arc_easy*.jsonl | query ("Question: ..."), choices, gold |
| boolq_local | boolq*.jsonl | query ("Passage: ...\nQuestion: ...?"), choices (no, yes), gold |
| hellaswag_local | hellaswag*.jsonl | query, choices, gold |
| lambada_local | lambada*.jsonl | context, continuation (the last word) |
| piqa_local | piqa*.jsonl | query ("Question: ...\n"), choices, gold |
| winogrande_local | winogrande*.jsonl | context_options, continuation, gold |
| text_local | text*.jsonl | text: perplexity per word and per byte, bits per byte |

`gold` is the number of the right choice, or of the context that makes the continuation right.
"""
