// What can be done with the pictures that were chosen in the gallery.

import { useState } from 'preact/hooks';
import { choiceOf, imagesOf, restore } from '../../state/actions';
import { api, pictureUrl } from '../../server/api';
import { fileName, save } from '../../device/files';
import { number, plural, t } from '../../i18n';
import { readItem } from '../../state/items';
import { go } from '../../state/route';
import { contentOf, keep, tell, tellProblem } from '../../state/store';
import { BoardMenu } from './boards';
import { Menu } from '../menu';
import { Button } from '../ui';

interface Props {
  chosen: string[];
  isBin: boolean;
  onAll: () => void;
  onDone: () => void;
  onRemove: () => Promise<void>;
  onRestored: (ids: string[]) => void;
}

const AT_ONCE = 4;

export function Selection({ chosen, isBin, onAll, onDone, onRemove, onRestored }: Props) {
  const [packed, setPacked] = useState<number | null>(null);
  const images = imagesOf(chosen);
  const isStarred = chosen.every((key) => {
    const { id, place } = readItem(key);
    return contentOf(id).value?.images[place]?.starred;
  });
  const star = async () => {
    try {
      await api.star(images, !isStarred);
      for (const id of new Set(chosen.map((key) => readItem(key).id))) keep(await api.content(id));
    } catch (error) {
      tellProblem(error);
    }
  };
  const download = async () => {
    const wanted = chosen.flatMap((key) => {
      const { id, place } = readItem(key);
      const content = contentOf(id).peek();
      if (!content) return [];
      const places = key.includes('_') ? [place] : content.images.map((_, n) => n);
      return places.map((one) => ({ content, place: one }));
    });
    const files: { name: string; blob: Blob }[] = [];
    setPacked(0);
    try {
      for (let at = 0; at < wanted.length; at += AT_ONCE) {
        const some = wanted.slice(at, at + AT_ONCE).map(async ({ content, place }) => {
          const url = content.images[place]?.url;
          const answer = await fetch(pictureUrl(url ?? ''));
          if (!answer.ok) throw new Error(String(answer.status));
          return { name: fileName(content, place), blob: await answer.blob() };
        });
        files.push(...(await Promise.all(some)));
        setPacked(files.length);
      }
      const { zip } = await import('../../device/zip');
      save(await zip(files), `studio-${new Date().toISOString().slice(0, 10)}.zip`);
    } catch {
      tell(t('zip.failed'), { isError: true });
    } finally {
      setPacked(null);
    }
  };
  const back = () => {
    const choice = choiceOf(chosen);
    void restore(choice, () => onRestored(chosen.map((key) => readItem(key).id)));
  };
  return (
    <div class="row selection" role="group" aria-label={t('gallery.chosen')}>
      <span class="num" role="status">
        {plural('gallery.count', chosen.length)}
      </span>
      <Button kind="quiet" onClick={onAll}>
        {t('gallery.all')}
      </Button>
      {isBin ? (
        <Button icon="undo" disabled={!chosen.length} onClick={back}>
          {t('gallery.restore')}
        </Button>
      ) : (
        <>
          <Button
            icon="compare"
            disabled={chosen.length !== 2}
            onClick={() => go(`compare/${chosen.join('/')}`)}
          >
            {t('action.compare')}
          </Button>
          <Button icon="star" iconOnly disabled={!images.length} onClick={() => void star()}>
            {t(isStarred ? 'star.remove' : 'action.star')}
          </Button>
          <Button
            icon="download"
            iconOnly
            disabled={!images.length || packed !== null}
            onClick={() => void download()}
          >
            {t('gallery.zip')}
          </Button>
          {packed !== null && (
            <span class="num small" role="status">
              {t('zip.progress', { done: number(packed), all: number(images.length) })}
            </span>
          )}
          <Menu label={t('board.label')} icon="board">
            <BoardMenu images={images} />
          </Menu>
          <Button icon="trash" disabled={!chosen.length} onClick={() => void onRemove()}>
            {t('action.delete')}
          </Button>
        </>
      )}
      <Button kind="quiet" onClick={onDone}>
        {t('action.done')}
      </Button>
    </div>
  );
}
