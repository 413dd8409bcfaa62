"""DPO at the speed of the hardware: rows that share their prompt, the reference computed once, one loop for one core
and for many GPUs.

    loss                   the objective, a pure function
    batch, plan            pairs as packed rows, and which pairs go where
    attention, forward     shared prefixes, through transformers' hooks
    features, reference    computed once: what the frozen tower gives, the reference's log-probabilities
    trainer                the loop
    backend                its seam: plain (one process) or zero (DeepSpeed's ranks)
    checkpoint             points of resumption
    masters, lora          what travels from round to round, and adapters instead of it all
    worker                 one rank's program
    step, launch           a round on this machine, by as many ranks as it has
    floor                  how fast it could be
"""
