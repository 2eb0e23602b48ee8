"""The peer FastAPI: a pydantic model of the row, and one signature call for each request."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, create_model
from signature import Signature

model = Signature()
fields: dict[str, Any] = {name: (str if kind.name == "string" else float | None, ...) for name, kind in model.types.items()}
Row: type[BaseModel] = create_model("Row", **fields)
app = FastAPI()


@app.post("/predict")
async def predict(row: Row) -> dict[str, float]:  # type: ignore[valid-type]
    """The answer to one row."""
    return model.rows([row.model_dump()])[0]  # type: ignore[attr-defined]
