"""The map of the suite. Imports go down this list, never up:

    train_cmd, reproduce, visualize, federated_cmd    the commands, beside this folder
    federated     learning by many clients, with fewer weights sent
    results       what follows a run: its record, tables and pictures
    flags         the commands' flags, made from the settings' declarations
    methods       what is compared, and the comparison
    training      one resumable run, which knows no method
    base_utils    get_model(): the models, with the paper's settings
    cmd_utils     CMD's public face
    pbfgs_utils   P-BFGS: principal directions, and BFGS in them
    cmd           Correlation Mode Decomposition of any model; imports nothing else of the suite
    data          images, from where they are to batches of them
    storage       what is on disk, whole or not at all
    system        what a process stands on: errors, arguments, signals, devices, ranks
    models        the architectures, beside this folder

The algorithm knows no run, a run knows no method, and the comparison alone knows all methods.
"""
