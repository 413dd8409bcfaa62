"""DPO at the speed of the hardware: rows that share their prompt, the reference computed once, one loop for one core
and for many GPUs.

    loss        the objective, a pure function          attention, forward   shared prefixes through transformers' hooks
    batch       pairs as packed rows                    features             what the frozen tower gave, kept
    plan        which pairs go where                    reference            log-probabilities, once a round
    trainer     the loop                                backend              its seam: plain (a process), zero (DeepSpeed)
    checkpoint  points of resumption                    masters, lora        what travels from round to round
    worker      one rank's program                      step, launch         a round on this machine, by as many as it has
    floor       how fast it could be
"""
