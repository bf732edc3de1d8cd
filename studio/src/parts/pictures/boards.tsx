// Boards: put pictures on one, make one, rename or remove one.

import { signal } from '@preact/signals';
import { useEffect, useState } from 'preact/hooks';
import { api, asProblem } from '../../server/api';
import { explain } from '../../server/explain';
import { number, t } from '../../i18n';
import { tell, tellProblem } from '../../state/store';
import type { Board } from '../../server/types';
import { MenuItem } from '../menu';
import { Button, Dialog, Field } from '../ui';

/** By name; null until they were read. */
export const boards = signal<Board[] | null>(null);

export async function refreshBoards(): Promise<void> {
  try {
    boards.value = (await api.boards()).items;
  } catch (error) {
    if (asProblem(error).status !== 401) tellProblem(error);
  }
}

async function put(board: Board, images: string[]): Promise<void> {
  try {
    await api.arrangeBoard(board.id, images, []);
    tell(t('board.added', { name: board.name }), {
      action: {
        label: t('action.undo'),
        run: () =>
          void api.arrangeBoard(board.id, [], images).then(refreshBoards, (error) => tellProblem(error)),
      },
    });
    await refreshBoards();
  } catch (error) {
    tellProblem(error);
  }
}

/** The part of a menu that puts `images` on a board. */
export function BoardMenu({ images }: { images: string[] }) {
  const [isNew, setNew] = useState(false);
  useEffect(() => {
    if (!boards.value) void refreshBoards();
  }, []);
  return (
    <>
      {(boards.value ?? []).slice(0, 12).map((board) => (
        <MenuItem key={board.id} icon="board" onClick={() => void put(board, images)}>
          {t('board.put', { name: board.name })}
        </MenuItem>
      ))}
      <MenuItem icon="board" keep onClick={() => setNew(true)}>
        {t('board.new')}
      </MenuItem>
      {isNew && (
        <NameDialog title={t('board.new')} onDone={(board) => void put(board, images)} onClose={() => setNew(false)} />
      )}
    </>
  );
}

interface NameProps {
  title: string;
  board?: Board;
  onDone: (board: Board) => void;
  onClose: () => void;
}

function NameDialog({ title, board, onDone, onClose }: NameProps) {
  const [name, setName] = useState(board?.name ?? '');
  const [error, setError] = useState<string | null>(null);
  const save = async () => {
    if (!name.trim()) return setError(t('check.name'));
    try {
      if (board) await api.renameBoard(board.id, name);
      const saved = board ? { ...board, name } : await api.createBoard(name);
      await refreshBoards();
      onDone(saved);
      onClose();
    } catch (problem) {
      setError(explain(asProblem(problem)));
    }
  };
  return (
    <Dialog title={title} onClose={onClose}>
      <form
        noValidate
        class="stack"
        onSubmit={(e) => {
          e.preventDefault();
          void save();
        }}
      >
        <Field label={t('avatar.name')} error={error}>
          {(attributes) => (
            <input
              {...attributes}
              type="text"
              maxLength={200}
              value={name}
              onInput={(e) => {
                setName(e.currentTarget.value);
                setError(null);
              }}
            />
          )}
        </Field>
        <footer class="row end">
          <Button onClick={onClose}>{t('action.cancel')}</Button>
          <Button type="submit" kind="accent">
            {t('action.save')}
          </Button>
        </footer>
      </form>
    </Dialog>
  );
}

/** The boards, one chosen to be seen alone; '' is none. */
export function BoardChoice({ chosen, onChoose }: { chosen: string; onChoose: (id: string) => void }) {
  const [isRenamed, setRenamed] = useState(false);
  useEffect(() => void refreshBoards(), []);
  const board = boards.value?.find((one) => one.id === chosen);
  if (!boards.value?.length) return null;
  const remove = async () => {
    if (!board) return;
    try {
      await api.deleteBoard(board.id);
      onChoose('');
      await refreshBoards();
      tell(t('board.removed', { name: board.name }));
    } catch (error) {
      tellProblem(error);
    }
  };
  return (
    <div class="row">
      <select
        aria-label={t('board.label')}
        value={chosen}
        onChange={(e) => onChoose(e.currentTarget.value)}
      >
        <option value="">{t('board.any')}</option>
        {boards.value.map((one) => (
          <option key={one.id} value={one.id}>
            {`${one.name} (${number(one.images)})`}
          </option>
        ))}
      </select>
      {board && (
        <>
          <Button icon="create" kind="quiet" iconOnly onClick={() => setRenamed(true)}>
            {t('board.rename', { name: board.name })}
          </Button>
          <Button icon="trash" kind="quiet" iconOnly onClick={() => void remove()}>
            {t('board.remove', { name: board.name })}
          </Button>
        </>
      )}
      {isRenamed && board && (
        <NameDialog
          title={t('board.rename', { name: board.name })}
          board={board}
          onDone={() => {}}
          onClose={() => setRenamed(false)}
        />
      )}
    </div>
  );
}
