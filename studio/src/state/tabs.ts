// What one tab does, the others of the same browser hear of.

type News =
  | { kind: 'made'; ids: string[] }
  | { kind: 'changed'; ids: string[] }
  | { kind: 'library' }
  | { kind: 'queue' }
  | { kind: 'session' };

const channel = 'BroadcastChannel' in window ? new BroadcastChannel('studio') : null;

export function announce(news: News): void {
  channel?.postMessage(news);
}

export function onNews(listener: (news: News) => void): void {
  channel?.addEventListener('message', (event: MessageEvent<News>) => listener(event.data));
}
