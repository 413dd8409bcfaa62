"""The paper's analyses: pure computation over the files of one run or several.

| module | what | in the paper |
|---|---|---|
| `lengths` | words of chosen responses, chosen to rejected, words of answers | Figures 4, 5 |
| `designs` | context designs side by side | Table 5 |
| `trajectories` | descriptions, responses and answers over the rounds, for some videos | Figures 7, 8 |
| `win_rate` | two systems' answers head to head against the ground truth, by a grader | Figure 6 |
| `claims` | what answers claim that the caption does not support, by a grader | Figure 2 |
| `agreement` | the judge's choices beside those of people or an oracle | Table 4 |
| `tables` | the paper's tables with our figures beside the reported ones | Tables 1, 2, 3, 5 |

Every result is a frozen dataclass of plain values: `form.to_json` writes it, `form.from_json` reads it back. A figure
is an `estimate.Estimate`, with its 95 % interval clustered by video. `runs` reads what the analyses compute over. Those
without a grader are cheap: the command line and the report alike call them. What a grader was asked for is written to
<run>/analysis/.
"""
