"""Five silos train one generator of digits, without a recipe."""

from pathlib import Path

from manyhands import Digits, Experiment, FedAvg, Iid, Sampling, Training, UNet, grid, split


def main(out: Path = Path("digits.png"), rounds: int = 20) -> None:
    # Setup
    digits = Digits().load(size=8).hold_out(0.2)
    model = UNet(size=8, channels=1, classes=10, widths=(16, 32))
    training = Training(batch=32, steps=20, learning_rate=2e-3, learning_rate_end=0.05)
    method = FedAvg(model=model, training=training, rounds=rounds, ema=0.8)
    experiment = Experiment(method, split(digits, Iid(silos=5)))

    # Train
    for closed_round in experiment:
        print(f"round {closed_round.number + 1}: loss {closed_round.loss:.3f}")

    # Sample
    verdict = experiment.evaluate()
    print(f"FID {verdict['metrics']['fid']:.2f}, of real images {verdict['floor']['fid']:.2f}")
    images = experiment.generator().sample(labels=list(range(10)), sampling=Sampling(steps=25, guidance=2.0))
    grid(out, images, headings=digits.classes)


if __name__ == "__main__":
    main()
