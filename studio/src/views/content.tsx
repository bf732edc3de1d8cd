// One picture by its link, with the way to its neighbours.

import { useEffect, useLayoutEffect, useState } from 'preact/hooks';
import { api, asProblem } from '../server/api';
import { explain } from '../server/explain';
import { t } from '../i18n';
import { expanded, readItem } from '../state/items';
import { follow } from '../server/live';
import { Button, Empty, Loading } from '../parts/ui';
import { Viewer } from '../parts/pictures/viewer';
import { go } from '../state/route';
import { isTyping } from '../device/shortcuts';
import { contentOf, feed, reached } from '../state/store';
import { galleryIds, galleryPath, noteOpened } from '../state/galleryPlace';

export function ContentView({ item }: { item: string }) {
  const { id, place } = readItem(item);
  const content = contentOf(id).value;
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    setProblem(null);
    if (contentOf(id).peek()) return;
    api.content(id).then(follow, (error) => setProblem(explain(asProblem(error))));
    // Also when the server is there again.
  }, [id, reached.value]);
  const keys = expanded(galleryIds() ?? feed.value ?? []);
  // A link to the whole request stands for its first picture.
  const here = Math.max(keys.indexOf(item), keys.indexOf(`${id}_1`) * Number(!item.includes('_')));
  const at = keys.includes(item) || keys.includes(`${id}_1`) ? here : -1;
  const before = at > 0 ? keys[at - 1] : undefined;
  const after = at >= 0 ? keys[at + 1] : undefined;
  // Before the view is painted: whoever leaves it at once comes back to its picture, too.
  useLayoutEffect(() => noteOpened(item), [item]);
  const leave = (by: -1 | 1) => {
    const to = by < 0 ? before : after;
    if (to) go(`content/${to}`);
  };
  // Before the view is painted: whoever sees it may press a key at once.
  useLayoutEffect(() => {
    const onKey = (e: KeyboardEvent) => {
      if (isTyping(e.target) || e.defaultPrevented) return;
      if (e.key === 'ArrowLeft') leave(-1);
      else if (e.key === 'ArrowRight') leave(1);
      else if (e.key === 'Escape') go(galleryPath());
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, [before, after]);
  return (
    <div class="page content">
      <header class="page-head">
        <h1>{t('viewer.label')}</h1>
        <nav class="row" aria-label={t('viewer.neighbours')}>
          <a class="button" href={`#/${galleryPath()}`}>
            {t('nav.gallery')}
          </a>
          <Button icon="left" iconOnly disabled={!before} onClick={() => leave(-1)}>
            {t('viewer.newer')}
          </Button>
          <Button icon="right" iconOnly disabled={!after} onClick={() => leave(1)}>
            {t('viewer.older')}
          </Button>
        </nav>
      </header>
      {content ? (
        <Viewer
          content={content}
          first={place}
          onShow={(shown) => go(`content/${shown}`)}
          onRemoved={() => go(after ? `content/${after}` : galleryPath())}
          onLeave={leave}
        />
      ) : problem ? (
        <Empty icon="image" title={problem} />
      ) : (
        <Loading />
      )}
    </div>
  );
}
