"""FastAPI, SQLAlchemy on asyncio with aiosqlite, pydantic, bcrypt in the thread pool.

    BENCH_DATABASE=users.db BENCH_COST=12 uvicorn benchmarks.peers.fastapi_app:app

As in the tutorials of FastAPI and SQLAlchemy: a session for each request, models of both libraries, and pydantic for
requests and responses.
"""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID, uuid4

import bcrypt
from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, EmailStr, Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

COST = int(os.environ.get("BENCH_COST", "12"))

engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ['BENCH_DATABASE']}")
sessions = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    position: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    mailbox: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str]
    age: Mapped[int]
    password_hash: Mapped[str]
    registered_at: Mapped[str]


class UserIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: EmailStr
    password: Annotated[str, Field(min_length=8, max_length=256)]
    age: Annotated[int, Field(strict=True, ge=18, le=130)]


class UserOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    age: int
    registered_at: datetime


class Page(BaseModel):
    data: list[UserOut]
    next_after: int | None


class One(BaseModel):
    data: UserOut


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


@app.get("/livez")
async def livez() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/users")
async def list_users(
    session: Session, limit: Annotated[int, Query(ge=1, le=200)] = 50, after: int = 0, email: str | None = None
) -> Page:
    query = select(User).where(User.position > after).order_by(User.position).limit(limit + 1)
    if email is not None:
        query = query.where(User.mailbox == email.casefold())
    users = (await session.scalars(query)).all()
    return Page(
        data=[UserOut.model_validate(user) for user in users[:limit]],
        next_after=users[limit - 1].position if len(users) > limit else None,
    )


@app.post("/register", status_code=201)
async def register(person: UserIn, session: Session) -> One:
    hashed = await run_in_threadpool(bcrypt.hashpw, person.password.encode()[:72], bcrypt.gensalt(COST))
    user = User(
        id=str(uuid4()),
        mailbox=person.email.casefold(),
        email=person.email,
        age=person.age,
        password_hash=hashed.decode(),
        registered_at=datetime.now(UTC).isoformat(),
    )
    session.add(user)
    try:
        await session.commit()
    except IntegrityError:
        raise HTTPException(409, "taken") from None
    return One(data=UserOut.model_validate(user))
