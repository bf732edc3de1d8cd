// One content by its link, with the way to its neighbours.

import { useEffect, useLayoutEffect, useState } from 'preact/hooks';
import { api, asProblem } from '../api';
import { t } from '../i18n';
import { follow } from '../live';
import { Button, Empty, Loading } from '../parts/ui';
import { Viewer } from '../parts/viewer';
import { go } from '../route';
import { contentOf, explain, feed } from '../store';
import { galleryIds } from './gallery';

export function ContentView({ id }: { id: string }) {
  const content = contentOf(id).value;
  const [problem, setProblem] = useState<string | null>(null);
  useEffect(() => {
    setProblem(null);
    if (contentOf(id).peek()) return;
    api.content(id).then(follow, (error) => setProblem(explain(asProblem(error))));
  }, [id]);
  const ids = galleryIds() ?? feed.value ?? [];
  const place = ids.indexOf(id);
  const before = place > 0 ? ids[place - 1] : undefined;
  const after = place >= 0 ? ids[place + 1] : undefined;
  // Before the view is painted: whoever sees it may press a key at once.
  useLayoutEffect(() => {
    const onKey = (e: KeyboardEvent) => {
      if ((e.target as HTMLElement).closest('input, textarea, select, dialog')) return;
      if (e.key === 'ArrowLeft' && before) go(`content/${before}`);
      else if (e.key === 'ArrowRight' && after) go(`content/${after}`);
      else if (e.key === 'Escape') go('gallery');
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, [before, after]);
  return (
    <div class="page content">
      <header class="page-head">
        <h1>{t('viewer.label')}</h1>
        <nav class="row" aria-label={t('viewer.neighbours')}>
          <a class="button" href="#/gallery">
            {t('nav.gallery')}
          </a>
          <Button icon="left" iconOnly disabled={!before} onClick={() => go(`content/${before}`)}>
            {t('viewer.newer')}
          </Button>
          <Button icon="right" iconOnly disabled={!after} onClick={() => go(`content/${after}`)}>
            {t('viewer.older')}
          </Button>
        </nav>
      </header>
      {content ? (
        <Viewer
          key={id}
          content={content}
          onShow={(shown) => go(`content/${shown}`)}
          onRemoved={() => go(after ? `content/${after}` : 'gallery')}
        />
      ) : problem ? (
        <Empty icon="image" title={problem} />
      ) : (
        <Loading />
      )}
    </div>
  );
}
