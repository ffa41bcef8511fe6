"""The optimizer inside other people's training loops. `make integration` installs what is needed and runs this."""

import lightning
import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from riemann_ng.likelihoods import Categorical
from riemann_ng.networks import Empirical
from riemann_ng.optim import NaturalGradient, Schedule

OPTIONS = [{}, {"gradient_clip_val": 10.0}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}]
SETTINGS = [{}, {"estimator": Empirical(), "schedule": Schedule(statistics=1)}]


def data(n=256):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return x, (x @ torch.arange(12.0).reshape(4, 3).cos()).argmax(1)


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


class Lit(lightning.LightningModule):
    def __init__(self, settings):
        super().__init__()
        self.body, self.settings, self.losses = body(), settings, []

    def training_step(self, batch, index):
        x, y = batch
        loss = cross_entropy(self.body(x), y)
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, index):
        self.body(batch[0])

    def configure_optimizers(self):
        self.opt = NaturalGradient(self.body, Categorical(), **self.settings)
        return [self.opt], [torch.optim.lr_scheduler.StepLR(self.opt, 100)]


def fit(settings, directory, epochs=6, resume=None, **options):
    module = Lit(settings)
    loader = DataLoader(TensorDataset(*data()), 64, shuffle=False)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=directory, **options,
    )  # fmt: skip
    trainer.fit(module, loader, loader, ckpt_path=resume)
    return module, trainer


@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "empirical"])
@pytest.mark.parametrize(
    "options", [{}, {"gradient_clip_val": 10.0}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str
)
def test_lightning(settings, options, tmp_path):
    module, _ = fit(settings, tmp_path, enable_checkpointing=False, **options)
    assert module.opt.steps == 24 // options.get("accumulate_grad_batches", 1)
    assert module.losses[-1] < 0.7 * module.losses[0] and str(module.opt.tally) == "nothing"


def test_lightning_is_the_plain_loop_and_resumes(tmp_path):
    whole, trainer = fit({}, tmp_path)
    model, (x, y) = body(), data()
    opt = NaturalGradient(model, Categorical())
    for rows in torch.arange(256).chunk(4) * 6:
        opt.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    assert all(map(torch.equal, model.state_dict().values(), whole.body.state_dict().values()))
    _, trainer = fit({}, tmp_path / "half", epochs=3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit({}, tmp_path / "rest", resume=str(tmp_path / "half.ckpt"))
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


class Classifier(transformers.PreTrainedModel):
    config_class = transformers.PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.body = body()
        self.post_init()

    def forward(self, values, labels=None):
        logits = self.body(values)
        loss = None if labels is None else cross_entropy(logits, labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)


@pytest.mark.parametrize("settings", SETTINGS, ids=["default", "empirical"])
@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_the_trainer_of_hugging_face(settings, options, tmp_path):
    model = Classifier(transformers.PretrainedConfig())
    opt = NaturalGradient(model, Categorical(), **settings)
    x, y = data()
    rows = [{"values": x[i], "labels": y[i]} for i in range(len(x))]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=6, per_device_train_batch_size=64, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, optimizers=(opt, torch.optim.lr_scheduler.StepLR(opt, 100))
    )
    before = float(cross_entropy(model(x).logits, y).detach())
    trainer.train()
    assert opt.steps == 24 // options.get("gradient_accumulation_steps", 1)
    assert float(cross_entropy(model(x).logits, y).detach()) < 0.7 * before and str(opt.tally) == "nothing"
