"""The page's figures, by what they say: what each shows, what its caption says, what is read out in its stead.

| module | figures | in the paper |
|---|---|---|
| `scores` | accuracy and score by policy | |
| `length` | words of preferred responses and of answers | 4a, 4b, 5 |
| `versus` | win rate; unsupported claims | 6, 2 |
| `judge` | order consistency, dropped rows, label mass | |
| `training` | every optimiser step | |
| `clock` | time a step | |
"""
